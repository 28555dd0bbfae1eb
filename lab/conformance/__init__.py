"""The stock Kubernetes end-to-end suite against a running lab."""
