#!/usr/bin/env python3
"""Export small transformers, built by configuration with random weights, to ONNX: many topologies, no downloads.

    python benchmarks/export_transformers.py OUT_DIR [--exporter script|dynamo] [NAME ...]

Needs torch, transformers, onnx and onnxscript in the environment that runs it; the project itself needs none of them.
Every weight is randomised: freshly initialised norms (1, 0), zero biases and layer scales of 1e-5 would hide mistakes.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.modules["torchvision"] = None  # type: ignore[assignment]  # not needed, and stubs without compiled ops break it
torch.backends.mha.set_fastpath_enabled(False)  # the fused operator has no ONNX form

import transformers as tf  # noqa: E402

TEXT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80, "vocab_size": 100}
IMAGE = {"image_size": 32, "patch_size": 8, "num_channels": 3}


def _text() -> torch.Tensor:
    return torch.randint(2, 90, (2, 16))


def _image(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


def _llama() -> tuple[Any, torch.Tensor]:
    config = tf.LlamaConfig(**TEXT, num_key_value_heads=2, max_position_embeddings=64, use_cache=False)
    return tf.LlamaForCausalLM(config), _text()


def _detr() -> tuple[Any, torch.Tensor]:
    backbone = tf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = tf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=48,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_queries=10, num_labels=7,
    )  # fmt: skip
    return tf.DetrForObjectDetection(config), _image(64)


def _whisper() -> tuple[Any, torch.Tensor]:
    config = tf.WhisperConfig(
        d_model=48, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=80, decoder_layers=1,
        decoder_attention_heads=4, decoder_ffn_dim=80, num_mel_bins=20, max_source_positions=32, vocab_size=100,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return tf.WhisperModel(config).get_encoder(), torch.randn(2, 20, 64)


def _wav2vec2() -> tuple[Any, torch.Tensor]:
    config = tf.Wav2Vec2Config(
        **{k: v for k, v in TEXT.items() if k != "vocab_size"}, vocab_size=32, conv_dim=[16, 24], conv_stride=[5, 4],
        conv_kernel=[10, 8], num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    return tf.Wav2Vec2ForCTC(config), torch.randn(2, 800)


def _swin() -> tuple[Any, torch.Tensor]:
    config = tf.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return tf.SwinForImageClassification(config), _image()


def _segformer() -> tuple[Any, torch.Tensor]:
    config = tf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[2, 4], mlp_ratios=[2, 2], decoder_hidden_size=24,
    )  # fmt: skip
    return tf.SegformerForSemanticSegmentation(config), _image(64)


def _mobilevit() -> tuple[Any, torch.Tensor]:
    config = tf.MobileViTConfig(
        image_size=64, hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64], num_attention_heads=4
    )
    return tf.MobileViTForImageClassification(config), _image(64)


BUILDERS: dict[str, Callable[[], tuple[Any, torch.Tensor]]] = {
    "bert": lambda: (tf.BertForSequenceClassification(tf.BertConfig(**TEXT)), _text()),
    "distilbert": lambda: (
        tf.DistilBertForSequenceClassification(
            tf.DistilBertConfig(dim=48, n_layers=2, n_heads=4, hidden_dim=80, vocab_size=100)
        ),
        _text(),
    ),
    "gpt2": lambda: (
        tf.GPT2LMHeadModel(
            tf.GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=100, n_positions=64, use_cache=False)
        ),
        _text(),
    ),
    "t5_encoder": lambda: (
        tf.T5EncoderModel(tf.T5Config(d_model=48, d_kv=12, d_ff=80, num_layers=2, num_heads=4, vocab_size=100)),
        _text(),
    ),
    "llama": _llama,
    "vit": lambda: (tf.ViTForImageClassification(tf.ViTConfig(**_vision())), _image()),
    "deit": lambda: (tf.DeiTForImageClassification(tf.DeiTConfig(**_vision())), _image()),
    "swin": _swin,
    "segformer": _segformer,
    "convnext": lambda: (
        tf.ConvNextForImageClassification(tf.ConvNextConfig(hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1])),
        _image(64),
    ),
    "mobilevit": _mobilevit,
    "detr": _detr,
    "whisper_encoder": _whisper,
    "wav2vec2": _wav2vec2,
}  # fmt: skip


def _vision() -> dict[str, Any]:
    return {**{k: v for k, v in TEXT.items() if k != "vocab_size"}, **IMAGE}


class First(torch.nn.Module):
    """Models return records; ONNX wants a tensor."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x, return_dict=False)[0]


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model with random weights and an example input."""
    torch.manual_seed(0)
    net, x = BUILDERS[name]()
    net.config._attn_implementation = "eager"
    for key, p in net.named_parameters():
        if p.ndim > 1:
            p.data.normal_(0, 1.0 if "embed" in key else p[0].numel() ** -0.5)
        elif "bias" in key:
            p.data.normal_(0, 0.1)
        else:
            p.data.uniform_(0.5, 1.5)
    for key, buffer in net.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return First(net).eval(), x


def export(name: str, exporter: str, path: Path) -> None:
    """Write one model, with a dynamic batch."""
    net, x = build(name)
    with torch.no_grad():
        if exporter == "script":
            torch.onnx.export(
                net, (x,), path, dynamo=False, opset_version=17, input_names=["input"], output_names=["output"],
                dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
            )  # fmt: skip
        else:
            torch.onnx.export(
                net, (x,), path, dynamo=True, opset_version=18, input_names=["input"], output_names=["output"],
                dynamic_shapes={"x": {0: torch.export.Dim.AUTO}}, external_data=False, verbose=False,
            )  # fmt: skip


def main() -> None:
    """Export what was asked for; a failed one is reported and does not stop the rest."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", choices=[*BUILDERS, []])
    parser.add_argument("--exporter", choices=("script", "dynamo"), default="dynamo")
    args = parser.parse_intermixed_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    failed = 0
    for name in args.names or BUILDERS:
        start = time.time()
        try:
            export(name, args.exporter, args.out / f"{name}.onnx")
            print(f"{name}: {time.time() - start:.1f} s", flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED {type(error).__name__}: {str(error)[:200]}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
