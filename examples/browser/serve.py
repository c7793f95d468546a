#!/usr/bin/env python3
"""Serves a folder with the headers that let the page use threads: python serve.py [FOLDER] [--port 8000]."""

import argparse
import functools
import http.server
from pathlib import Path

# With both headers a page is isolated from other pages, and browsers allow it to share memory between threads.
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class Handler(http.server.SimpleHTTPRequestHandler):
    """A handler for static files that adds `headers` to every response."""

    headers_added = ISOLATION

    def end_headers(self):
        for name, value in self.headers_added.items():
            self.send_header(name, value)
        super().end_headers()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "site")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder}: no such folder. Build it with site.sh")
    handler = functools.partial(Handler, directory=arguments.folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
