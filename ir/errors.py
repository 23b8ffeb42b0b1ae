"""Every error that the package raises on purpose, as one tree; the command line makes one line of each.

SlimError                  exit 1   base of all; `str(error)` is one clear line that names the thing and what to do
├── BadInput               exit 1   what the user handed in is unusable; nothing was written
│   ├── ModelError                  not ONNX, truncated, cyclic, an opset nobody knows, data outside its folder
│   ├── DataError                   feeds: names, shapes, types, NaN, empty
│   │   └── RefusedFeeds            ONNX Runtime does not take them for the model that runs
│   ├── OptionError                 an unknown pass or option, an impossible value
│   └── OutputError                 the output cannot be written, or is the input
├── MissingExtra           exit 1   an optional dependency is needed and absent
├── PassError              exit 1   a pass broke its contract: says which, with its options and the passes before it
└── LimitsNotMet           exit 3   the best model found was written, but misses a limit that the user set
"""

from __future__ import annotations


class SlimError(Exception):
    """Base of every deliberate error."""

    exit_code = 1


class BadInput(SlimError):
    """The model, the data or an option is unusable."""


class ModelError(BadInput):
    """The model file or its contents."""


class DataError(BadInput):
    """The feeds."""


class RefusedFeeds(DataError):
    """Feeds that ONNX Runtime refuses: the data's fault where the user's own model was run, else that of the model."""


class OptionError(BadInput):
    """A pass name, an option or its value."""


class OutputError(BadInput):
    """The place where the result should go."""


class MissingExtra(SlimError):
    """An optional dependency is needed here and is not installed."""


class PassError(SlimError):
    """A pass failed or broke its contract."""


class LimitsNotMet(SlimError):
    """No model within the user's limits was found; the best one was written."""

    exit_code = 3
