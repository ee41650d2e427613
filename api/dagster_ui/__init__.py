"""Dagster's webserver behind the api's authentication, under /dagster."""
