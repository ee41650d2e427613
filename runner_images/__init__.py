"""Runner templates, and the package `vyvo_runner` that every runner uses."""

from runner_images.template_check import check_template
from runner_images.templates import (
    SDK_DIR,
    SHARED_DIR,
    TEMPLATES_DIR,
    Modality,
    Resources,
    Template,
    TemplateInvalid,
    get_template,
    load_templates,
)

__all__ = [
    "SDK_DIR",
    "SHARED_DIR",
    "TEMPLATES_DIR",
    "Modality",
    "Resources",
    "Template",
    "TemplateInvalid",
    "check_template",
    "get_template",
    "load_templates",
]
