"""An S3-compatible store on loopback: moto's server, as a process of its own."""

import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import boto3

from qwen_edit.settings import BucketSettings

BUCKET = "edits"


@dataclass(frozen=True)
class ObjectStore:
    """A running store with one bucket, and the settings of a worker that may write to it."""

    settings: BucketSettings

    @contextmanager
    def checking_keys(self) -> Iterator[None]:
        """Let the store refuse what is not signed with the worker's keys."""
        self._demand_keys_after("0")
        try:
            yield
        finally:
            self._demand_keys_after("inf")

    def with_settings(self, **changes: str) -> BucketSettings:
        return replace(self.settings, **changes)

    def names(self) -> list[str]:
        listing = _client("s3", self.settings.endpoint_url).list_objects_v2(Bucket=BUCKET)
        return [entry["Key"] for entry in listing.get("Contents", [])]

    def _demand_keys_after(self, requests: str) -> None:
        url = f"{self.settings.endpoint_url}/moto-api/reset-auth"
        request = urllib.request.Request(url, requests.encode(), {"Content-Type": "text/plain"})
        with urllib.request.urlopen(request) as response:
            response.read()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            url = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            drain = threading.Thread(target=deque, args=(server.stderr, 0))
            drain.start()
            yield ObjectStore(_create_bucket(url))
        finally:
            server.terminate()
            server.wait()
        drain.join()


def download(url: str) -> tuple[bytes, str]:
    """The bytes behind an address and their type, by plain HTTP."""
    with urllib.request.urlopen(url) as response:
        return response.read(), response.headers["Content-Type"]


def _create_bucket(url: str) -> BucketSettings:
    _client("s3", url).create_bucket(Bucket=BUCKET)
    users = _client("iam", url)
    users.create_user(UserName="worker")
    allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    users.put_user_policy(UserName="worker", PolicyName="s3", PolicyDocument=policy)
    keys = users.create_access_key(UserName="worker")["AccessKey"]
    return BucketSettings(url, keys["AccessKeyId"], keys["SecretAccessKey"], BUCKET)


def _client(service: str, url: str) -> Any:
    return boto3.session.Session().client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="admin",
        aws_secret_access_key="admin",
    )
