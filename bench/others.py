"""Other servers that answer the same JWKS, for bench/throughput.py: how each is set up and started.

Each runs in one process on one core, without an access log, the way its documentation shows. All
give the same body and the same four fields; FastAPI and Flask make it from a document for every
request, as programs written with them do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from bench import serving

OTHER_TREE = "ours, the other tree"
# What OpenSSL is told to make the key of a certificate.
TLS = {"ecdsa": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "rsa": ("rsa:2048",)}
TREES: dict[str, Path | None] = {OTHER_TREE: None}  # where that is, if it takes part
PATH = "/.well-known/jwks.json"
FIELDS = {
    "Content-Type": "application/json",
    "Cache-Control": "public, max-age=300",
    "ETag": '"a-thumbprint-like-tag-of-some-length"',
    "Access-Control-Allow-Origin": "*",
}

GO = """
package main

import (
	"net/http"
	"os"
	"runtime"
)

func main() {
	runtime.GOMAXPROCS(1)
	body, _ := os.ReadFile(os.Args[2])
	http.HandleFunc("PATH", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		FIELDS
		w.Write(body)
	})
	address := "127.0.0.1:" + os.Args[1]
	if len(os.Args) > 3 {
		http.ListenAndServeTLS(address, os.Args[3], os.Args[4], nil)
	}
	http.ListenAndServe(address, nil)
}
"""

NGINX = """
worker_processes 1;
daemon off;
master_process off;
pid FOLDER/nginx.pid;
error_log /dev/null;
events { worker_connections 15000; }
http {
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path FOLDER; proxy_temp_path FOLDER; fastcgi_temp_path FOLDER;
    uwsgi_temp_path FOLDER; scgi_temp_path FOLDER;
    server {
        listen 127.0.0.1:PORT backlog=4096TLS;
        CERTIFICATE
        location = PATH { FIELDS return 200 'BODY'; }
    }
}
"""


def command(name: str, port: int, folder: Path, tls: str = "") -> list[str] | None:
    """How to start it on this port; None if it is not installed, or does no TLS here.

    `folder` has the body in `body`, and certificates for the kinds of keys in `TLS`.
    """
    files = [str(folder / f"{tls}.crt"), str(folder / f"{tls}.key")] if tls else []
    if name.startswith("ours"):
        return ours(name, port, folder, files)
    if name == "Go net/http":
        return go(port, folder, files)
    if name == "nginx":
        return nginx(port, folder, files)
    return None if tls else python_server(name, port, folder)


def ours(name: str, port: int, folder: Path, files: list[str]) -> list[str] | None:
    tree = TREES.get(name, serving.ROOT)
    if tree is None:
        return None
    flags = ["--max-connections", "15000", "--max-per-client", "15000"]
    flags += ["--tls-cert", files[0], "--tls-key", files[1]] if files else []
    log = "text" if name.endswith("log on") else "off"
    return serving.command(*flags, db=folder / f"{port}.db", tree=tree, port=port, log=log)


def go(port: int, folder: Path, files: list[str]) -> list[str] | None:
    program = folder / "go-server"
    if not shutil.which("go"):
        return None
    if not program.exists():
        fields = "\n".join(f"h.Set({json.dumps(n)}, {json.dumps(v)})" for n, v in FIELDS.items())
        source = folder / "main.go"
        source.write_text(GO.replace("PATH", PATH).replace("FIELDS", fields))
        subprocess.run(["go", "build", "-o", program, source], check=True)
    return [str(program), str(port), str(folder / "body"), *files]


def nginx(port: int, folder: Path, files: list[str]) -> list[str] | None:
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        return None
    fields = "".join(
        f"default_type {value};" if name == "Content-Type" else f"add_header {name} '{value}';"
        for name, value in FIELDS.items()
    )
    secure = ""
    if files:  # of the two versions that ours and Go speak, its default is the older one
        secure = f"ssl_certificate {files[0]}; ssl_certificate_key {files[1]};"
        secure += " ssl_protocols TLSv1.2 TLSv1.3;"
    text = NGINX.replace("TLS", " ssl" if files else "").replace("CERTIFICATE", secure)
    text = text.replace("PATH", PATH).replace("FIELDS", fields).replace("PORT", str(port))
    text = text.replace("FOLDER", str(folder)).replace("BODY", (folder / "body").read_text())
    configuration = folder / f"nginx-{port}.conf"
    configuration.write_text(text)
    return [program, "-c", str(configuration)]


def python_server(name: str, port: int, folder: Path) -> list[str] | None:
    uvicorn = [
        sys.executable, "-m", "uvicorn", "--port", str(port), "--no-access-log", "--log-level",
        "critical", "--loop", "uvloop", "--http", "httptools", "--factory",
    ]  # fmt: skip
    needs, started = {
        "bare ASGI on uvicorn, uvloop": (
            ["uvicorn", "uvloop", "httptools"],
            [*uvicorn, "bench.others:asgi_app"],
        ),
        "FastAPI on uvicorn, uvloop": (
            ["fastapi", "uvicorn", "uvloop", "httptools"],
            [*uvicorn, "bench.others:fastapi_app"],
        ),
        "Flask on gunicorn": (
            ["flask", "gunicorn"],
            [
                sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "1",
                "--threads", "8", "--log-level", "critical", "--backlog", "4096",
                "bench.others:flask_app()",
            ],
        ),
        "bjoern": (["bjoern"], [sys.executable, "-m", "bench.others", "bjoern", str(port)]),
        "http.server, a thread each": (
            [],
            [sys.executable, "-m", "bench.others", "http.server", str(port)],
        ),
    }[name]  # fmt: skip
    installed = all(importlib.util.find_spec(module) for module in needs)
    return started if installed else None


def body() -> bytes:
    return Path(os.environ["BENCH_BODY"]).read_bytes()


def asgi_app() -> Any:
    octets = body()
    fields = [(name.lower().encode(), value.encode()) for name, value in FIELDS.items()]
    fields.append((b"content-length", str(len(octets)).encode()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": fields})
            await send({"type": "http.response.body", "body": octets})

    return app


def fastapi_app() -> Any:
    fastapi = import_module("fastapi")
    document = json.loads(body())
    fields = {name: value for name, value in FIELDS.items() if name != "Content-Type"}
    app = fastapi.FastAPI()

    async def jwks(response: Any) -> Any:
        response.headers.update(fields)
        return document

    jwks.__annotations__ = {"response": fastapi.Response, "return": dict[str, Any]}
    app.get(PATH)(jwks)
    return app


def flask_app() -> Any:
    flask = import_module("flask")
    document = json.loads(body())
    fields = {name: value for name, value in FIELDS.items() if name != "Content-Type"}
    app = flask.Flask(__name__)

    def jwks() -> Any:
        return flask.jsonify(document), 200, fields

    app.get(PATH)(jwks)
    return app


def serve_wsgi(port: int) -> None:
    octets = body()
    fields = [*FIELDS.items(), ("Content-Length", str(len(octets)))]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", fields)
        return [octets]

    import_module("bjoern").run(app, "127.0.0.1", port)


def serve_standard(port: int) -> None:
    """The standard library's server as it comes, with HTTP/1.1 turned on."""
    http_server = import_module("http.server")
    octets = body()

    class Handler(http_server.BaseHTTPRequestHandler):  # type: ignore[misc,name-defined]
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in FIELDS.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(octets)))
            self.end_headers()
            self.wfile.write(octets)

        def log_message(self, *_: object) -> None:
            pass

    http_server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    {"bjoern": serve_wsgi, "http.server": serve_standard}[sys.argv[1]](int(sys.argv[2]))
