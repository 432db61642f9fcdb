//! A node of a Kubernetes cluster.
