#!/usr/bin/env bash
# Clean a model with accelerate choosing device and precision. All arguments go to `hf-finemix clean`:
#
#     examples/accelerate_launch.sh org/suspect --base-model org/base --dataset org/clean-data --output-dir cleaned
#
# One process: MIXED_PRECISION=bf16 examples/accelerate_launch.sh … trains in bf16 where the device can.
set -euo pipefail
exec accelerate launch --num_processes 1 --num_machines 1 --mixed_precision "${MIXED_PRECISION:-no}" \
  --dynamo_backend no -m hf_finemix clean "$@"
