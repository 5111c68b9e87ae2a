"""Addresses that services listen on: who can reach them, and how a person writes them."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    if address == "localhost":
        return True
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def http_url(address: str, port: int) -> str:
    """What a person opens; an IPv6 address has its brackets."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}"
