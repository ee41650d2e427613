"""Where secrets come from when they are in Vault or OpenBao. Prefix `VYVO_VAULT_`."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["VaultSettings"]


class VaultSettings(BaseSettings):
    """A server of secrets; without an address there is none, and the environment holds them."""

    model_config = SettingsConfigDict(env_prefix="VYVO_VAULT_", env_file=".env", extra="ignore")

    address: str | None = Field(default=None, description="URL of Vault or OpenBao.")
    token: SecretStr | None = Field(default=None, description="A token of it, renewed while used.")
    role_id: str | None = Field(default=None, description="AppRole to log in by, instead.")
    secret_id: SecretStr | None = Field(default=None, description="Its secret id.")
    namespace: str | None = Field(default=None, description="Namespace; unset: the root.")
    ca: Path | None = Field(default=None, description="PEM certificates it is checked with.")
    mount: str = Field(default="secret", description="Mount of the KV engine, version 2.")
    path: str = Field(
        default="vyvo", pattern=r"^[A-Za-z0-9][A-Za-z0-9/_-]*$",
        description="Folder there: registries/<host>, hugging-face, github.",
    )  # fmt: skip
    cache_seconds: float = Field(
        default=60.0, ge=0, description="A secret that was read is not read again for so long."
    )
    outage_seconds: float = Field(
        default=900.0, ge=0, description="While Vault is away or sealed it is used for so long."
    )
    node_policy: str = Field(
        default="vyvo-node", description="Policy of the tokens that nodes are given."
    )
    node_seconds: int = Field(default=600, ge=30, description="Life of those, unless renewed.")
