"""A token issuer: keys, a JWKS document on a port of loopback, and tokens good and bad."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE = "https://issuer.example.com/", "vyvo"
KINDS = {"RS256": "rsa", "ES256": "ec", "EdDSA": "ed"}


def make_key(algorithm: str) -> Any:
    return {
        "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }[algorithm]()


def public_jwk(algorithm: str, key: Any, kid: str, **more: str) -> dict[str, Any]:
    kind = {
        "RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm,
        "EdDSA": jwt.algorithms.OKPAlgorithm,
    }[algorithm]  # fmt: skip
    return {**json.loads(kind.to_jwk(key.public_key())), "kid": kid, "use": "sig", **more}


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Issuer:
    """Serves `document`; `fetched` counts how often, `away` answers 503."""

    def __init__(self) -> None:
        self.keys = {a: make_key(a) for a in KINDS}
        self.document: Any = {
            "keys": [public_jwk(a, key, KINDS[a]) for a, key in self.keys.items()]
        }
        self.fetched = 0
        self.away = False
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetched += 1
                body = json.dumps(issuer.document).encode()
                self.send_response(503 if issuer.away else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def settings(self) -> dict[str, Any]:
        return {"jwt_jwks_url": self.url, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}

    def claims(self, *scopes: str, **values: Any) -> dict[str, Any]:
        now = int(time.time())
        made = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": "someone", "tenant": "acme", "iat": now,
            "exp": now + 300, "scope": " ".join(scopes), **values,
        }  # fmt: skip
        return {name: value for name, value in made.items() if value is not None}

    def token(
        self, *scopes: str, algorithm: str = "RS256", key: Any = None,
        headers: dict[str, Any] | None = None, **values: Any,
    ) -> str:  # fmt: skip
        """A good token but for what is said; a value of None leaves a claim out."""
        named = {"kid": KINDS.get(algorithm, "rsa"), **(headers or {})}
        return jwt.encode(
            self.claims(*scopes, **values), key or self.keys[algorithm], algorithm,
            headers={name: value for name, value in named.items() if value is not None},
        )  # fmt: skip
