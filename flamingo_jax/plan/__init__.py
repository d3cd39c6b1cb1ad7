"""The verb `plan`: whether an experiment fits a pod, and how fast it can be, without the pod."""
