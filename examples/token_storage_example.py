"""Where tokens can be kept: `python examples/token_storage_example.py`. It leaves nothing behind."""

from __future__ import annotations

import os
import tempfile

from mcp_oauth import OAuthTokens, TokenManager, TokenStoreBackend, TokenStoreFactory

NAME = "token-storage-example"


def show(manager: TokenManager) -> None:
    tokens = OAuthTokens("an-access-token", expires_in=3600, refresh_token="a-refresh-token", scope="read write")
    manager.save_tokens(NAME, tokens)
    loaded = manager.load_tokens(NAME)
    manager.delete_tokens(NAME)
    print(f"{manager.backend_name}: saved, loaded {'the same' if loaded == tokens else 'something else'}, deleted")


def main() -> None:
    available = TokenStoreFactory.get_available_backends()
    print("Usable here:", ", ".join(backend.value for backend in available))

    print("\nThe best of this system:")
    show(TokenManager())

    print("\nEncrypted files, with a password:")
    with tempfile.TemporaryDirectory() as folder:
        show(TokenManager(TokenStoreBackend.ENCRYPTED_FILE, token_dir=folder, password="correct horse battery staple"))

    for backend in (TokenStoreBackend.KEYCHAIN, TokenStoreBackend.SECRET_SERVICE, TokenStoreBackend.CREDENTIAL_MANAGER):
        if backend in available:
            print("\nThe system's keyring:")
            show(TokenManager(backend))

    print("\nVault:")
    if "VAULT_ADDR" in os.environ:
        show(TokenManager(TokenStoreBackend.VAULT))
    else:
        print("set VAULT_ADDR and VAULT_TOKEN to try it")


if __name__ == "__main__":
    main()
