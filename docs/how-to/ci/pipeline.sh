#!/bin/sh
# Any CI that runs a shell: train, wait, evaluate, promote. docs/how-to/pipeline.md explains exit codes and signals.
#
#   KEY             this pipeline's id: the same one goes on with the same run
#   MODEL, EVAL     the base, and the rows of data.eval
#   CPMBEE_OUTPUT   `output` of job.yaml
#   PRODUCTION      the folder that stands for the delta in use
set -eu

run=$(cpmbee-job submit job.yaml --key "$KEY")
cpmbee-job wait "$run" --timeout 5h --cancel-on-signal --summary summary.md --junit junit.xml

# Both on the same rows: the one in use may have been trained when there were others. 102: there is none yet.
cpmbee-job evaluate --model "$MODEL" --data "$EVAL" --delta "$CPMBEE_OUTPUT/$run" --record
cpmbee-job evaluate --model "$MODEL" --data "$EVAL" --delta "$PRODUCTION" --record || test $? -eq 102

cpmbee-job promote "$run" --to "$PRODUCTION" --min-gain "${MIN_GAIN:-0}" --summary summary.md
