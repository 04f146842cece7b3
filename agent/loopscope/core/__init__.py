"""The ground everything stands on: standard library only, no threads, no asyncio."""
