#!/bin/sh
# The main job on a model and data that ship with the project: prune, low rank and INT8, judged by labels.
set -eu
out=${1:-demo-out}
here=$(dirname "$0")
mkdir -p "$out"
onnxslim zoo build digits_resnet -o "$out/digits_resnet.onnx"
onnxslim opt "$out/digits_resnet.onnx" -o "$out/digits_resnet.slim.onnx" -p prune,lowrank,quant \
    --data "$here/tasks.py:digits_data" --metric "$here/tasks.py:digits_metric" --max-drop 1% \
    --report "$out/report.html"
echo "The model is $out/digits_resnet.slim.onnx; the whole report, to open in a browser, is $out/report.html"
