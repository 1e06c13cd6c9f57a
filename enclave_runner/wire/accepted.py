"""What a head worker takes from clients, whatever its bundle; known inside and outside."""

from __future__ import annotations

# Every decoder in the enclave is code to trust. Clients send other formats as PNG.
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
# Sessions at once; the enclave has a thread for each.
MAX_CLIENTS = 32
