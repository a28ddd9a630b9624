"""TransferQueue's key-value interface in memory, for the methods of verl's trainer that read and write it.

That the real one has these functions is a contract of its own (test_data_plane.py).
"""

from typing import Any

import torch
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta

FUNCTIONS = ("kv_batch_get", "kv_batch_put", "kv_clear", "kv_list", "kv_put", "async_kv_put", "async_kv_batch_put")


class Store:
    """Rows by key. ``log`` holds what was called, for the order of things."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, dict[str, Any]] = {}
        self.log: list[tuple[str, Any]] = []

    def put(self, key: str, tag: dict[str, Any], **fields: Any) -> None:
        self.rows[key], self.tags[key] = fields, tag

    def meta(self, *keys: str, **extra: Any) -> KVBatchMeta:
        return KVBatchMeta(
            partition_id="train", keys=list(keys), tags=[dict(self.tags[key]) for key in keys], extra_info=extra
        )

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        names = [name for name in self.rows[keys[0]] if select_fields is None or name in select_fields]
        self.log.append(("get", names))
        columns = {name: [self.rows[key][name] for key in keys] for name in names}
        return TensorDict({name: column(values) for name, values in columns.items()}, batch_size=len(keys))

    def kv_batch_put(self, keys, partition_id, fields=None, tags=None):
        self.log.append(("put", (list(keys), partition_id)))
        for i, key in enumerate(keys):
            row = self.rows.setdefault(key, {})
            if fields is not None:
                row.update({name: fields[i][name] for name in fields.keys()})  # noqa: SIM118
            if tags is not None:
                self.tags[key] = tags[i]
        return self.meta(*keys)

    def kv_clear(self, keys, partition_id):
        self.log.append(("clear", list(keys)))

    def kv_list(self, partition_id=None):
        return {partition_id: dict(self.tags)}

    def kv_put(self, key, partition_id, tag):
        self.log.append(("status", (key, tag["status"])))

    async def async_kv_put(self, key, partition_id, tag):
        self.kv_put(key, partition_id, tag)

    async def async_kv_batch_put(self, keys, fields, tags, partition_id):
        self.kv_batch_put(keys, partition_id, fields, tags)


def column(values: list[Any]) -> Any:
    """A field over rows: tensors of any length nested, scalars stacked, everything else as it is."""
    if not isinstance(values[0], torch.Tensor):
        return NonTensorStack(*values)
    if values[0].dim() == 0:
        return torch.stack(values)
    return torch.nested.as_nested_tensor(values, layout=torch.jagged)
