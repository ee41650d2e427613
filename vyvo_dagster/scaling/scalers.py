"""The scalers of one installation, chosen in one place."""

from collections.abc import Mapping

from vyvo_dagster.domain.pool import ScalerKind
from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.scaling.base import Scaler
from vyvo_dagster.scaling.local import LocalScaler
from vyvo_dagster.scaling.terraform import TerraformScaler
from vyvo_dagster.scaling.webhook import WebhookScaler
from vyvo_dagster.settings import Settings

__all__ = ["make_scalers"]


def make_scalers(settings: Settings, environment: Mapping[str, str]) -> dict[ScalerKind, Scaler]:
    """Every scaler that the settings allow.

    Args:
        environment: of this process; what the scalers start inherits it but for our settings.

    Raises:
        InvalidInput: the settings of the webhook cannot be used.
    """
    found: dict[ScalerKind, Scaler] = {}
    token = settings.join_token
    if token is not None and settings.local_agents > 0:
        agent = {
            "VYVO_AGENT_API_URL": settings.api_url,
            "VYVO_AGENT_JOIN_TOKEN": token.get_secret_value(),
            # Where the venv build backend of the same machine puts its environments.
            "VYVO_AGENT_VENV_DIR": str(settings.data_dir.absolute() / "venvs"),
            "VYVO_AGENT_ENGINE": settings.engine,
        }
        if settings.docker_host is not None:
            agent["VYVO_AGENT_DOCKER_HOST"] = settings.docker_host
        found[ScalerKind.LOCAL] = LocalScaler(
            settings.data_dir / "pools", environment=environment, agent=agent,
            limit=settings.local_agents,
        )  # fmt: skip
    if settings.terraform_modules is not None:
        found[ScalerKind.TERRAFORM] = TerraformScaler(
            program=settings.terraform, modules=settings.terraform_modules,
            work=settings.data_dir / "terraform", environment=environment,
            variables={
                "vyvo_api_url": settings.api_url,
                "vyvo_join_token": "" if token is None else token.get_secret_value(),
            },
            seconds=settings.terraform_seconds,
        )  # fmt: skip
    url, secret = settings.scaler_webhook_url, settings.scaler_webhook_secret
    if (url is None) != (secret is None):
        raise InvalidInput("set VYVO_SCALER_WEBHOOK_URL and VYVO_SCALER_WEBHOOK_SECRET together")
    if url is not None and secret is not None:
        found[ScalerKind.WEBHOOK] = WebhookScaler(
            url, secret.get_secret_value(), api_url=settings.api_url
        )
    return found
