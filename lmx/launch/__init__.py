"""Starting jobs of many processes: on this machine, under Slurm, on Kubernetes."""
