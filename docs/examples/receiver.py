"""A receiver of usage records that counts each of them once.

    receiver.py --listen 127.0.0.1:9000 --db bills.db     takes records of `reporters[].webhook`
    receiver.py --db bills.db --bill                      prints tokens by user and model

BILLING_SECRET is the reporter's `hmac_secret`. Needs nothing but Python 3.9.
"""

import argparse
import hashlib
import hmac
import json
import os
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY_MAX = 64 << 20
TABLE = """CREATE TABLE IF NOT EXISTS usage (
    request_id TEXT PRIMARY KEY, timestamp TEXT, user_id TEXT, model TEXT, status TEXT,
    prompt_tokens INTEGER, completion_tokens INTEGER, total_tokens INTEGER)"""
COLUMNS = ["request_id", "timestamp", "user_id", "model", "status",
           "prompt_tokens", "completion_tokens", "total_tokens"]
# The same record may come twice, and then, after a power cut, with less in it: the better one stays.
STORE = f"""INSERT INTO usage ({", ".join(COLUMNS)})
    VALUES ({", ".join(":" + name for name in COLUMNS)})
    ON CONFLICT (request_id) DO UPDATE SET status = excluded.status,
        prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
        total_tokens = excluded.total_tokens
    WHERE coalesce(excluded.total_tokens, 0) > coalesce(usage.total_tokens, 0)"""
BILL = """SELECT coalesce(user_id, '-'), coalesce(model, '-'), count(*),
    coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0)
    FROM usage GROUP BY 1, 2 ORDER BY 1, 2"""


def records(body):
    """Those of a body: one JSON object, an array of them (`batch: array`), or lines (`ndjson`)."""
    text = body.decode("utf-8")
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    database = None
    turn = threading.Lock()
    secret = b""

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        if length > BODY_MAX:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(length)
        if self.secret and not self.is_signed(body):
            return self.answer(401)
        try:
            rows = [{name: record.get(name) for name in COLUMNS} for record in records(body)]
        except (ValueError, AttributeError):
            return self.answer(400)
        # 200 only once it is on the disk: until then the gateway keeps it.
        with self.turn, self.database:
            self.database.executemany(STORE, rows)
        return self.answer(200)

    def is_signed(self, body):
        expected = "sha256=" + hmac.new(self.secret, body, hashlib.sha256).hexdigest()
        return hmac.compare_digest(self.headers.get("X-LLMProxy-Signature", ""), expected)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:9000")
    options.add_argument("--db", metavar="FILE", default="bills.db")
    options.add_argument("--bill", action="store_true", help="print the bill, and end")
    chosen = options.parse_args()
    # Connections are kept, so each has a thread; `turn` lets one of them write.
    database = sqlite3.connect(chosen.db, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(TABLE)
    if chosen.bill:
        print(f"{'USER':20} {'MODEL':30} {'REQUESTS':>10} {'PROMPT':>12} {'COMPLETION':>12}")
        for user, model, *numbers in database.execute(BILL):
            print(f"{user:20} {model:30} {numbers[0]:10} {numbers[1]:12} {numbers[2]:12}")
        return
    Receiver.database = database
    Receiver.secret = os.environ.get("BILLING_SECRET", "").encode()
    host, port = chosen.listen.rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Receiver)
    print(f"listening on {host}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
