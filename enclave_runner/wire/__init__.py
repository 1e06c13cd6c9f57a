"""How head, tail and clients speak: sessions, frames, transports."""
