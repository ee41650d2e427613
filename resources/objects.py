"""The object store, for ops and sensors."""

from dagster import ConfigurableResource
from pydantic import Field, SecretStr

from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings

__all__ = ["ObjectsResource"]


class ObjectsResource(ConfigurableResource[None]):
    """Makes ObjectStore; nothing is sent until it is used."""

    endpoint: str = Field(description="S3 endpoint URL, http or https.")
    access_key: str = Field(description="S3 access key id.")
    secret_key: str = Field(description="S3 secret key.")
    region: str = Field(default="us-east-1", description="Region used to sign requests.")
    bucket_prefix: str = Field(
        default="vyvo-", description="Put before each modality to name its bucket."
    )

    def settings(self) -> S3Settings:
        """The same as the settings that everything else reads."""
        return S3Settings(
            endpoint=self.endpoint,
            public_endpoint=None,
            access_key=self.access_key,
            secret_key=SecretStr(self.secret_key),
            region=self.region,
            bucket_prefix=self.bucket_prefix,
        )

    def store(self) -> ObjectStore:
        """A client of the store."""
        return ObjectStore(self.settings())

    def runner_environment(self, artifact_ttl_seconds: int) -> dict[str, str]:
        """What a runner needs to upload, as its environment."""
        return {
            "VYVO_S3_ENDPOINT": self.endpoint,
            "VYVO_S3_ACCESS_KEY": self.access_key,
            "VYVO_S3_SECRET_KEY": self.secret_key,
            "VYVO_S3_REGION": self.region,
            "VYVO_S3_BUCKET_PREFIX": self.bucket_prefix,
            "VYVO_ARTIFACT_TTL_SECONDS": str(artifact_ttl_seconds),
        }
