"""The one place where the provider of secrets is chosen."""

from vyvo_dagster.security.secrets import EnvironmentSecrets, Secrets
from vyvo_dagster.settings import Settings
from vyvo_dagster.settings_vault import VaultSettings

__all__ = ["make_secrets"]


def make_secrets(settings: Settings, vault: VaultSettings | None = None) -> Secrets:
    """Vault where it has an address, else the servers' environment.

    Args:
        vault: unset reads `VYVO_VAULT_*` from the environment.

    Raises:
        InvalidInput: settings that do not fit together.
    """
    found = VaultSettings() if vault is None else vault
    if found.address is None:
        return EnvironmentSecrets(
            settings.secret_registries, settings.secret_hugging_face, settings.github_token
        )
    from vyvo_dagster.security.vault import VaultSecrets

    return VaultSecrets(found)
