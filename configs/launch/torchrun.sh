#!/bin/bash
# Trains on all GPUs of several nodes without a scheduler. On each node, from the root of the repository, the same line but
# for NODE, which counts from 0; MASTER is the name of node 0.
#
#     NODES=2 NODE=0 MASTER=first.host GPUS=4 bash configs/launch/torchrun.sh configs/fewgan_256.yaml run_name=birds
#
# All nodes have to see run_dir and the images at the same place. When a process dies, all nodes end (see README); the same
# lines again go on from the last whole epoch.
set -euo pipefail

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

exec "${PYTHON:-.venv/bin/python}" -m torch.distributed.run \
    --nnodes="${NODES:-1}" --node-rank="${NODE:-0}" --nproc-per-node="${GPUS:-1}" \
    --master-addr="${MASTER:-127.0.0.1}" --master-port="${PORT:-29500}" \
    train.py "$@" resume=auto trainer.num_nodes="${NODES:-1}" trainer.devices="${GPUS:-1}"
