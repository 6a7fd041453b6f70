#!/bin/sh
# Any CI that runs a shell: train, wait, evaluate, promote. docs/how-to/pipeline.md explains exit codes and signals.
#
#   KEY             this pipeline's id: the same id finds the same run
#   MODEL, EVAL     the base model, and the records of data.eval
#   CPMBEE_OUTPUT   `output` of job.yaml
#   PRODUCTION      the folder of the delta in use
set -eu

run=$(cpmbee-job submit job.yaml --key "$KEY")
cpmbee-job wait "$run" --timeout 5h --cancel-on-signal --summary summary.md --junit junit.xml

# Evaluate both on the same records, which may have changed since the delta in use was trained. 102: there is none yet.
cpmbee-job evaluate --model "$MODEL" --data "$EVAL" --delta "$CPMBEE_OUTPUT/$run" --record
cpmbee-job evaluate --model "$MODEL" --data "$EVAL" --delta "$PRODUCTION" --record || test $? -eq 102

cpmbee-job promote "$run" --to "$PRODUCTION" --min-gain "${MIN_GAIN:-0}" --summary summary.md
