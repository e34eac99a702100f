"""The keys of a project: joins the files of roots with what wraps them.

Comes in: configuration. Goes out: one key store per region, shared by its legs, so that a root is unwrapped
once. The master key of the local stack is made here, on first use and only while no root exists.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.key_config import TransitConfig
from pipeline.policy.keys import FileKeyStore, create_keys
from pipeline.policy.root_files import list_roots
from pipeline.policy.secret_files import read_secret
from pipeline.policy.wrapping import PassphraseWrapping, Wrapping, create_master, read_master


class Keyring:
    """The key stores of a configuration's regions. Nothing is read before it is asked for."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stores: dict[str, FileKeyStore] = {}
        self._wrappings: dict[str, Wrapping] = {}

    def store(self, region: str) -> FileKeyStore:
        """The region's key store. Raises ConfigError when what wraps its roots is missing."""
        if region not in self._stores:
            self._stores[region] = FileKeyStore(self._config.keys_path(region), self.wrapping(region))
        return self._stores[region]

    def wrapping(self, region: str) -> Wrapping:
        """What wraps the region's roots. Raises ConfigError when its secret is missing or open to others."""
        if region not in self._wrappings:
            self._wrappings[region] = self._made(region)
        return self._wrappings[region]

    def create(self, region: str, purposes: Iterable[str]) -> list[Path]:
        """Make the roots that are missing; the paths of the new ones. Raises ConfigError, TransientError."""
        self.prepare(region)
        return create_keys(self._config.keys_path(region), region, purposes, self.wrapping(region))

    def prepare(self, region: str) -> None:
        """Make the local stack's master key when it is what wraps the region's roots and no root exists yet.

        Raises ConfigError when it is gone and there are roots under it.
        """
        path = self.default_master()
        if not self._is_default(region) or path.exists():
            return
        for other in filter(self._is_default, self._config.regions):
            if list_roots(self._config.keys_path(other)):
                raise ConfigError(
                    "the master key is gone, and there are roots under it", operation="key store",
                    place=str(path), remedy="restore it: another one would not open them",
                )  # fmt: skip
        create_master(path)

    def default_master(self) -> Path:
        """Where the local stack keeps its master key."""
        return self._config.state / "secrets" / "master.key"

    def _is_default(self, region: str) -> bool:
        keys = self._config.key_wrapping(region)
        return not (keys.master_file or keys.passphrase_file or keys.passphrase_env or keys.transit)

    def _made(self, region: str) -> Wrapping:
        keys = self._config.key_wrapping(region)
        if keys.transit is not None:
            return _transit(keys.transit)
        if keys.passphrase_file is not None:
            return PassphraseWrapping(read_secret(keys.passphrase_file, mounted=True))
        if keys.passphrase_env:
            passphrase = os.environ.get(keys.passphrase_env, "")
            if not passphrase:
                raise ConfigError(
                    "no passphrase", operation="key store", place=f"variable {keys.passphrase_env}",
                    remedy="set the variable that [keys] passphrase_env names",
                )  # fmt: skip
            return PassphraseWrapping(passphrase)
        return read_master(keys.master_file or self.default_master())


def _transit(config: TransitConfig) -> Wrapping:
    """The adapter, which needs a package that not everyone has."""
    try:
        from connectors.vault_transit import TransitWrapping
    except ModuleNotFoundError as error:
        if error.name != "hvac":
            raise
        raise ConfigError(
            "the package hvac is missing", operation="key store", place="[keys] transit",
            remedy="install the extra: edge-to-core-pipeline[vault]",
        ) from None  # fmt: skip
    return TransitWrapping(config)
