"""Timestamps requests (RFC 3161) on a free port, which it prints: c2pa_timestamp.py FOLDER, which has tsa.cnf."""

import http.server
import subprocess
import sys
import tempfile


class Authority(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        query = self.rfile.read(int(self.headers["Content-Length"]))
        with tempfile.NamedTemporaryFile() as file:
            file.write(query)
            file.flush()
            command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", file.name]
            reply = subprocess.run(command, check=True, capture_output=True, cwd=sys.argv[1]).stdout
        self.send_response(200)
        self.send_header("Content-Type", "application/timestamp-reply")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Authority)
print(server.server_port, flush=True)
server.serve_forever()
