"""Peers, floors and workloads, measured side by side in one run."""
