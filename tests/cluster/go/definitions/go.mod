// Operators whose definitions of kinds manifests are checked against: files of theirs, nothing is built.
module cpmbee-job/tests/cluster/definitions

go 1.25.0

require (
	github.com/argoproj/argo-workflows/v3 v3.7.2
	github.com/prometheus-operator/prometheus-operator v0.89.0
)
