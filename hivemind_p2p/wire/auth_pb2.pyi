from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AccessToken(_message.Message):
    __slots__ = ("username", "public_key", "expiration_time", "signature")
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    EXPIRATION_TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    username: str
    public_key: bytes
    expiration_time: str
    signature: bytes
    def __init__(self, username: _Optional[str] = ..., public_key: _Optional[bytes] = ..., expiration_time: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RequestAuthInfo(_message.Message):
    __slots__ = ("client_access_token", "service_public_key", "time", "nonce", "signature")
    CLIENT_ACCESS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SERVICE_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    client_access_token: AccessToken
    service_public_key: bytes
    time: float
    nonce: bytes
    signature: bytes
    def __init__(self, client_access_token: _Optional[_Union[AccessToken, _Mapping]] = ..., service_public_key: _Optional[bytes] = ..., time: _Optional[float] = ..., nonce: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ResponseAuthInfo(_message.Message):
    __slots__ = ("service_access_token", "nonce", "signature")
    SERVICE_ACCESS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    service_access_token: AccessToken
    nonce: bytes
    signature: bytes
    def __init__(self, service_access_token: _Optional[_Union[AccessToken, _Mapping]] = ..., nonce: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...
