"""Steps of workflows as containers on tagged hosts, driven by the workflow engine."""
