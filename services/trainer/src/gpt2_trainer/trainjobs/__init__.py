"""Trainings as TrainJobs of Kubeflow Trainer v2 (`trainer.kubeflow.org/v1alpha1`), created and followed.

The cluster's object is what makes it one training: its name comes from the job's id, so that a service that starts
again finds it. Progress and result come over the pod's log.
"""
