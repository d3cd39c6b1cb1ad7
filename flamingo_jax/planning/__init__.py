"""What a step costs on a pod that is not there: chips, topologies, FLOPs, the floor of its time."""
