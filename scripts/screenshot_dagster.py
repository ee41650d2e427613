"""A picture of a page of Dagster's UI, through the api, as a browser with a session sees it.

    VYVO_API_KEY=vyk_... python scripts/screenshot_dagster.py http://127.0.0.1:8080 /dagster/runs out.png [1400x800]

Drives a headless Chromium by its DevTools protocol: signs in by the form, and waits for the page.
"""

import asyncio
import base64
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

_SIZE = "1400x800"


class _Page:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send(
            json.dumps({"id": self._number, "method": method, "params": params})
        )
        while True:
            answer = json.loads(await self._socket.recv())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    async def run(self, script: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return result["result"].get("value")

    async def until(self, script: str) -> None:
        async with asyncio.timeout(60):
            while not await self.run(script):
                await asyncio.sleep(0.2)


async def _take(url: str, path: str, key: str, size: str, socket_url: str) -> bytes:
    width, _, height = size.partition("x")
    async with connect(socket_url, max_size=64 << 20, proxy=None) as socket:
        page = _Page(socket)
        await page.call("Page.enable")
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=int(width), height=int(height),
            deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        await page.call("Page.navigate", url=f"{url}{path}")
        await page.until("document.querySelector('#key') !== null")
        await page.run(
            f"document.querySelector('#key').value = {json.dumps(key)};"
            "document.querySelector('form').submit()"
        )
        await page.until(
            "document.querySelector('#root') !== null && document.body.innerText.length > 200"
        )
        await asyncio.sleep(4)  # what the page still fetches
        await page.run(
            "[...document.querySelectorAll('button')].find(b => b.innerText === 'Skip')?.click()"
        )
        await asyncio.sleep(4)
        await page.until("!document.body.innerText.includes('Loading run logs')")
        taken = await page.call("Page.captureScreenshot", format="png")
        return base64.b64decode(taken["data"])


async def _main(url: str, path: str, out: Path, size: str = _SIZE) -> None:
    key = os.environ["VYVO_API_KEY"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        browser = await asyncio.create_subprocess_exec(
            os.environ.get("CHROMIUM", "chromium"), "--headless=new", "--no-sandbox",
            "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={home}",
            "--no-proxy-server", "about:blank", stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port_file = Path(home) / "DevToolsActivePort"
            async with asyncio.timeout(60):
                while not port_file.exists() or not port_file.read_text().strip():
                    await asyncio.sleep(0.1)
            port = port_file.read_text().split()[0]
            import httpx

            async with httpx.AsyncClient(trust_env=False) as http:
                targets = (await http.get(f"http://127.0.0.1:{port}/json")).json()
            target = next(t for t in targets if t["type"] == "page")
            out.write_bytes(await _take(url, path, key, size, target["webSocketDebuggerUrl"]))
        finally:
            browser.terminate()
            await browser.wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1].rstrip("/"), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:5]))
