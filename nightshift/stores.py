"""Object stores that speak S3: options made safe, faults in words, their files for Arrow.

Two writers are safe where the store keeps the promise of a conditional write, `If-None-Match: *`:
of two that write one version of a table one is refused. delta-rs relies on it; without it each
could write over the other's commit, so what switches it off is refused here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from .config import nearest

S3 = re.compile(r"s3a?://")
_KNOWN = {
    "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_token", "aws_region",
    "aws_default_region", "aws_endpoint", "aws_endpoint_url", "aws_endpoint_url_s3",
    "aws_bucket", "aws_bucket_name", "aws_allow_http", "aws_virtual_hosted_style_request",
    "aws_unsigned_payload", "aws_checksum_algorithm", "aws_skip_signature", "aws_request_payer",
    "aws_imdsv1_fallback", "aws_metadata_endpoint", "aws_container_credentials_relative_uri",
    "aws_container_credentials_full_uri", "aws_container_authorization_token_file",
    "aws_web_identity_token_file", "aws_role_arn", "aws_iam_role_arn", "aws_role_session_name",
    "aws_iam_role_session_name", "aws_endpoint_url_sts", "aws_sts_endpoint", "aws_profile",
    "aws_disable_tagging", "aws_s3_express", "aws_copy_if_not_exists", "aws_conditional_put",
    "aws_server_side_encryption", "aws_sse_kms_key_id", "aws_sse_bucket_key_enabled",
    "aws_sse_customer_key_base64", "aws_s3_allow_unsafe_rename", "aws_s3_locking_provider",
    "aws_endpoint_url_dynamodb", "aws_region_dynamodb", "aws_access_key_id_dynamodb",
    "aws_secret_access_key_dynamodb", "aws_session_token_dynamodb", "aws_force_credential_load",
    "aws_ec2_metadata_disabled", "aws_allow_invalid_certificates",
}  # fmt: skip
"""What object_store and delta-rs read; they pass over any other without a word."""
_OFF = ("false", "0", "no", "off", "")
_STEPS = re.compile(r"\x1b\[[0-9;]*m|↳")


def problem_of(options: Mapping[str, str]) -> str | None:
    """What is wrong with the options of a store, for the line of `storage:`; no value is shown."""
    for name, value in options.items():
        key = name.lower()
        if key.startswith("aws_") and key not in _KNOWN:
            return f"{name}: not an option of a store; {nearest(key, _KNOWN)}"
        if key.endswith("s3_allow_unsafe_rename") and value.lower() not in _OFF:
            return (
                f"{name}: lets two writers lose each other's commits. Leave it out; the store "
                "needs conditional writes (If-None-Match), which S3 and its kin have."
            )
        if key.endswith("conditional_put") and value.lower() == "disabled":
            return f"{name}: without conditional writes a table cannot be written safely. Leave it."
    return None


def safe(uri: str, options: Mapping[str, str]) -> dict[str, str]:
    """The options of a lake's store, in which the environment cannot make writing unsafe."""
    found = dict(options)
    if S3.match(uri):
        there = {one.lower() for one in found}
        if not there & {"aws_conditional_put", "conditional_put"}:
            found["AWS_CONDITIONAL_PUT"] = "etag"
        if "aws_s3_allow_unsafe_rename" not in there:
            found["AWS_S3_ALLOW_UNSAFE_RENAME"] = "false"
    return found


def arrow_files(folder: str, options: Mapping[str, str]) -> Any:
    """A folder of a bucket, `s3://bucket/folder`, as a file system of Arrow's own, for reading.

    One that is written in Python, as delta-rs' is, may still be held by a thread of Arrow's when
    the interpreter ends, and the process then aborts after its work is done.
    """
    from pyarrow import fs

    return fs.SubTreeFileSystem(S3.sub("", folder), arrow_store(options))


def arrow_store(options: Mapping[str, str]) -> Any:
    """The store as a file system of Arrow's own, by the options of delta-rs."""
    given = {one.lower().removeprefix("aws_"): value for one, value in options.items()}

    def said(*names: str) -> str | None:
        """The first that is there, in the options, then in the environment, as delta-rs looks."""
        return next((given[one] for one in names if given.get(one)), None) or next(
            (value for one in names if (value := os.environ.get(f"AWS_{one.upper()}"))), None
        )

    named: dict[str, Any] = {
        "access_key": said("access_key_id"),
        "secret_key": said("secret_access_key"),
        "session_token": said("session_token", "token"),
        "region": said("region", "default_region"),
    }
    endpoint = said("endpoint_url", "endpoint", "endpoint_url_s3")
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        named |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    for option, key, value in (
        ("skip_signature", "anonymous", True),
        ("virtual_hosted_style_request", "force_virtual_addressing", True),
        ("allow_invalid_certificates", "tls_verify_certificates", False),
    ):
        if (said(option) or "").lower() not in _OFF:
            named[key] = value
    return _arrow_store(tuple((key, one) for key, one in named.items() if one is not None))


@lru_cache(8)
def _arrow_store(named: tuple[tuple[str, Any], ...]) -> Any:
    """One client, and its connections, for all reads."""
    from pyarrow import fs

    retries = fs.AwsDefaultS3RetryStrategy(max_attempts=10)
    return fs.S3FileSystem(
        **dict(named), connect_timeout=10, request_timeout=60, retry_strategy=retries
    )


def told(error: BaseException | None) -> tuple[str, str]:
    """A store's fault on one line; and what a person has to put right before a retry can help.

    The second is empty where the fault may pass by itself.
    """
    line = " ".join(_STEPS.sub(" ", str(error)).split())
    code = re.search(r"<Code>(\w+)</Code>", line)
    reason = code[1] if code else ""
    if reason == "NoSuchBucket":
        return "the store has no such bucket (NoSuchBucket)", "Make it, or correct `lake`."
    if reason in ("SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "InvalidToken",
                  "ExpiredToken", "AuthorizationHeaderMalformed", "RequestTimeTooSkewed") or (
        "403 Forbidden" in line and "latest/api/token" not in line
    ):  # fmt: skip
        return (
            f"the store refused access ({reason or '403 Forbidden'})",
            "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY under `storage`, or what this key "
            "may do: list, read, write and delete.",
        )
    if "latest/api/token" in line or "security-credentials" in line:
        return (
            "found no key to the store, and this machine has no role that gives one",
            "Give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY under `storage`.",
        )
    if "URL scheme is not allowed" in line:
        return (
            "the store's address is http://, which is not allowed unless asked for",
            'Give `AWS_ALLOW_HTTP: "true"` under `storage`, or an address with https://.',
        )
    if "Generic Config error" in line:
        return line, "Correct `storage`."
    attempts = re.search(r"in ([\d.]+)m?s, after (\d+) retries", line)
    why = re.search(r"(Connection refused|Connection reset|dns error|timed out|No route)", line)
    if attempts and why:
        return f"the store does not answer ({why[1]}, {attempts[2]} retries)", ""
    return line, ""


@contextmanager
def answering() -> Iterator[None]:
    """Tell a store that does not answer, which may pass, from one that says no."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if "NETWORK_CONNECTION" in str(error) or "SLOW_DOWN" in str(error):
            raise ConnectionError(told(error)[0]) from error
        raise


def open_to_sources(options: Mapping[str, str]) -> None:
    """Let `source.paths` name files of the lake's store, with its options: s3://bucket/inbox/*.csv.

    Where s3fs is installed, and finds its own options, it is left to that.
    """
    from importlib.util import find_spec

    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs

    if find_spec("s3fs") is not None:
        return

    class Files(ArrowFSWrapper):
        """A bucket, read by Arrow."""

        def __init__(self, **_: Any):
            super().__init__(arrow_store(options))

        # fsspec's own say no to whatever goes wrong: an inbox that refuses would be an empty one.
        def isfile(self, path: str) -> bool:
            return self._kind(path) == fs.FileType.File

        def isdir(self, path: str) -> bool:
            return self._kind(path) == fs.FileType.Directory

        def _kind(self, path: str) -> Any:
            with answering():
                return self.fs.get_file_info(self._strip_protocol(path)).type

        def _open(self, path: str, *given: Any, **named: Any) -> Any:
            with answering():
                return super()._open(path, *given, **named)

    for protocol in ("s3", "s3a"):
        fsspec.register_implementation(protocol, Files, clobber=True)
