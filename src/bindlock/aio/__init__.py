"""The same lock for asyncio and trio: `bindlock.lock`, awaited. Needs anyio, which no other layer does."""
