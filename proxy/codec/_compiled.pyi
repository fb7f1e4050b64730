from proxy.codec._python import ReplyState, RequestState
from proxy.codec.table import Command, ParseTable

def parse_requests(
    buffer: bytes, table: ParseTable, state: RequestState | None = None
) -> tuple[list[Command], int, RequestState | None]: ...
def frame_replies(
    buffer: bytes | bytearray, state: ReplyState | None = None, begin: int = 0, end: int | None = None
) -> tuple[list[bytes], int, ReplyState | None]: ...
