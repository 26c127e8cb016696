"""Apache's mod_auth_openidc as a resource server: a token opens it by its scope."""

from __future__ import annotations

import contextlib
import http.client
import os
import unittest
from typing import ClassVar

from tests.live.issuing import ELSEWHERE, AsThePageSays, begin, needs
from tests.support import free_port

MODULES = "/usr/lib/apache2/modules"
CONFIG = """
ServerRoot {folder}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/pid
ErrorLog {folder}/error.log
DocumentRoot {folder}/pages
User www-data
Group www-data
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule auth_openidc_module {modules}/mod_auth_openidc.so
OIDCCryptoPassphrase nothing-is-stored
OIDCOAuthSSLValidateServer Off
{page}
"""


@needs("apache2", f"{MODULES}/mod_auth_openidc.so")
class Apache(AsThePageSays):
    heading, secure = "Apache", True
    port: ClassVar[int]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.port = free_port()
        (cls.folder / "pages").mkdir()
        (cls.folder / "pages/page.txt").write_text("the page")
        config = cls.folder / "apache.conf"
        page = cls.page.there("apache", **{ELSEWHERE: cls.issuer_url})
        config.write_text(
            CONFIG.format(folder=cls.folder, port=cls.port, modules=MODULES, page=page)
        )
        environ = {**os.environ, "APACHE_RUN_DIR": str(cls.folder)}
        begin(cls, ["apache2", "-f", str(config), "-DFOREGROUND"], cls.port, env=environ)

    def status(self, token: str | None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request("GET", "/page.txt", headers=headers)
            return connection.getresponse().status

    def errors(self) -> str:
        return (self.folder / "error.log").read_text("utf-8")[-2000:]

    def test_opens_to_scope_and_audience(self):
        self.assertEqual(self.status(self.token()), 200, self.errors())

    def test_opens_to_nothing_else(self):
        others = self.flawed()
        others["without the scope"] = self.token_without_claims()
        others["of a similar scope"] = self.issuer.token(self.name, scope="write reader")
        self.assertEqual(self.status(None), 401)
        for name, token in others.items():
            with self.subTest(name):
                self.assertEqual(self.status(token), 401)


if __name__ == "__main__":
    unittest.main()
