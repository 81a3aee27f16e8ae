"""One client of the NBD server gets its turn, and not more."""

import asyncio
import socket
import time

from backy.nbd.channel import Channel
from backy.units import KiB


def test_others_get_their_turn_while_a_client_sends_faster_than_it_is_answered() -> None:
    """One that reads its replies, too, would keep all others waiting for ever."""

    had_a_turn = False

    async def answer_until_others_had_a_turn() -> None:
        def others() -> None:
            nonlocal had_a_turn
            had_a_turn = True

        client, ours = socket.socketpair()
        with client:
            channel = Channel(ours)
            asyncio.get_running_loop().call_later(0.1, others)
            deadline = time.monotonic() + 30
            while not had_a_turn:
                assert time.monotonic() < deadline
                client.sendall(bytes(KiB))
                await channel.receive(KiB)
            channel.close()

    asyncio.run(answer_until_others_had_a_turn())
