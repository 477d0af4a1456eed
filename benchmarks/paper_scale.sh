#!/usr/bin/env bash
# Table 1 at full width, on one GPU: eight victims, all defenses with the paper's settings.
#
#     benchmarks/paper_scale.sh DATA OUT [OPTIONS OF polarizer bench run]
#
# DATA holds cifar10/train.parquet and test.parquet; OUT gets records and artefacts. What matters most comes first, and a
# run that was stopped goes on where it was. Four cells share the GPU. On a machine without one:
#
#     benchmarks/paper_scale.sh DATA OUT --scale smoke --device cpu --gpus 0
#
# The time on a GPU has not been measured.
set -euo pipefail
if [ $# -lt 2 ]; then
	sed -n 's/^# \{0,1\}//; 2,11p' "$0" >&2
	exit 2
fi
data=$1 out=$2
shift 2

table() {
	polarizer bench run table01 --scale short --data "$data" --out "$out" --device cuda --gpus 0.25 --cpus 2 "$@"
}

table --only defense=npd-ls --only seed=0 "$@"
table --only defense=npd --only defense=npd-tp --only defense=npd-tu --only seed=0 "$@"
table --only seed=0 "$@"
table "$@"
