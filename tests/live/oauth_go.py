"""Go's x/oauth2 gets tokens with both grants; which way to authenticate, it finds out by itself."""

from __future__ import annotations

import shutil
import tempfile
import unittest
from pathlib import Path
from typing import Any, ClassVar

from tests.live.issuing import NAME, Issuing, ask_program, needs

LIBRARY = "/usr/share/gocode"  # of golang-golang-x-oauth2-dev
PROGRAM = """
package main

import (
	"context"
	"encoding/json"
	"net/url"
	"os"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

var found = map[string]interface{}{}

func take(name string, token *oauth2.Token, err error) {
	if err != nil {
		found[name] = map[string]string{"failed": err.Error()}
		return
	}
	found[name] = token
}

func main() {
	address, name, password := os.Getenv("ENDPOINT"), os.Getenv("NAME"), os.Getenv("PASSWORD")
	styles := map[string]oauth2.AuthStyle{
		"detected": oauth2.AuthStyleAutoDetect,
		"params":   oauth2.AuthStyleInParams,
		"header":   oauth2.AuthStyleInHeader,
	}
	for way, style := range styles {
		service := clientcredentials.Config{
			ClientID: name, ClientSecret: password, TokenURL: address, AuthStyle: style,
		}
		token, err := service.Token(context.Background())
		take("credentials "+way, token, err)
		endpoint := oauth2.Endpoint{TokenURL: address, AuthStyle: style}
		app := oauth2.Config{ClientID: "app", Endpoint: endpoint}
		token, err = app.PasswordCredentialsToken(context.Background(), name, password)
		take("password "+way, token, err)
	}
	narrow := clientcredentials.Config{ClientID: name, ClientSecret: password, TokenURL: address,
		Scopes: []string{"read"}, EndpointParams: url.Values{"resource": {"https://api.example"}}}
	token, err := narrow.Token(context.Background())
	take("narrowed", token, err)
	wrong := clientcredentials.Config{ClientID: name, ClientSecret: "wrong", TokenURL: address}
	token, err = wrong.Token(context.Background())
	take("refused", token, err)
	json.NewEncoder(os.Stdout).Encode(found)
}
"""


@needs("go", f"{LIBRARY}/src/golang.org/x/oauth2")
class GoClients(Issuing):
    found: ClassVar[dict[str, Any]]  # by what was asked for

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = Path(tempfile.mkdtemp(prefix="jwks-go-"))
        cls.addClassCleanup(shutil.rmtree, folder, ignore_errors=True)
        (folder / "main.go").write_text(PROGRAM)
        cls.found = ask_program(
            ["go", "run", "main.go"], folder,
            GO111MODULE="off", GOPATH=LIBRARY, GOCACHE=str(folder / "cache"), GOFLAGS="",
            ENDPOINT=f"{cls.issuer_url}/auth", NAME=NAME, PASSWORD=cls.password,
        )  # fmt: skip

    def test_get_a_token_with_both_grants_in_every_way(self):
        for grant in ("credentials", "password"):
            for way in ("detected", "params", "header"):
                with self.subTest(grant=grant, way=way):
                    self.assertIssued(self.found[f"{grant} {way}"])

    def test_narrow_scope_and_audience(self):
        self.assertIssued(self.found["narrowed"], "read", "https://api.example")

    def test_hear_the_word_of_a_refusal(self):
        self.assertIn("invalid_client", self.found["refused"]["failed"])


if __name__ == "__main__":
    unittest.main()
