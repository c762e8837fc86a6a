"""Durable state: one directory with a database and files of pending rows, always at a whole commit."""

from monitor.store.contents import Loaded, Receipt, StoredMessage
from monitor.store.database import Store
from monitor.store.directory import StoreError

__all__ = ["Loaded", "Receipt", "Store", "StoreError", "StoredMessage"]
