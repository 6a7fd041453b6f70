// The Prometheus operator, for its definitions of PodMonitor and PrometheusRule only: nothing of it is built.
module cpmbee-job/tests/cluster/prometheus-operator

go 1.25.0

require github.com/prometheus-operator/prometheus-operator v0.89.0
