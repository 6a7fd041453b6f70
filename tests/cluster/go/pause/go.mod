// What holds a pod's namespaces while its containers come and go.
module cpmbee-job/tests/cluster/pause

go 1.21
