"""A Kubernetes cluster of one node on this machine, from the Go module proxy and Debian's packages."""
