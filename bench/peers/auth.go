// The whole of POST /register, POST /auth and the key set as a Go programmer writes it, for bench/auth.py:
// net/http, x/crypto/argon2, golang-jwt, go-sqlite3. Logins share a commit, as with ours.
//
//	auth PORT DATABASE [forget]
//
// With `forget`, each login costs Argon2id; else a password that was verified is remembered.
package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/golang-jwt/jwt"
	_ "github.com/mattn/go-sqlite3"
	"golang.org/x/crypto/argon2"
)

const schema = `
CREATE TABLE users(id INTEGER PRIMARY KEY, username TEXT UNIQUE, salt BLOB, password_hash BLOB,
	last_login TEXT);
CREATE TABLE auth_logs(id INTEGER PRIMARY KEY, request_ip TEXT, request_timestamp TEXT,
	user_id INTEGER);`

type credentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

type account struct {
	id         int64
	salt, hash []byte
	verified   []byte // an HMAC of the password, once it was verified
}

type attempt struct {
	address, time string
	user          int64
	hash          []byte
	done          chan error
}

var (
	database *sql.DB
	key      *rsa.PrivateKey
	secret   = make([]byte, 32)
	attempts = make(chan attempt, 1024)
	hashing  = make(chan struct{}, runtime.NumCPU()) // a hash takes a core and 19 MiB
	verified sync.Map                                // name -> account
	forget   bool
)

func hash(password string, salt []byte) []byte {
	hashing <- struct{}{}
	defer func() { <-hashing }()
	return argon2.IDKey([]byte(password), salt, 2, 19456, 1, 32)
}

func remembered(password string) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(password))
	return mac.Sum(nil)
}

func register(w http.ResponseWriter, r *http.Request) {
	var wanted credentials
	random := make([]byte, 32)
	if json.NewDecoder(r.Body).Decode(&wanted) != nil || wanted.Username == "" {
		http.Error(w, `{"error":"invalid_request"}`, http.StatusBadRequest)
		return
	}
	must(rand.Read(random))
	random[6], random[8] = random[6]&0x0f|0x40, random[8]&0x3f|0x80
	password := fmt.Sprintf("%x-%x-%x-%x-%x", random[:4], random[4:6], random[6:8], random[8:10],
		random[10:16])
	salt := random[16:]
	_, err := database.Exec("INSERT INTO users (username, salt, password_hash) VALUES (?, ?, ?)",
		wanted.Username, salt, hash(password, salt))
	if err != nil {
		http.Error(w, `{"error":"taken"}`, http.StatusConflict)
		return
	}
	answer(w, http.StatusCreated, map[string]string{"password": password})
}

func find(given credentials) (found account, ok bool) {
	if known, there := verified.Load(given.Username); there && !forget {
		found = known.(account)
		return found, hmac.Equal(found.verified, remembered(given.Password))
	}
	row := database.QueryRow("SELECT id, salt, password_hash FROM users WHERE username = ?",
		given.Username)
	if row.Scan(&found.id, &found.salt, &found.hash) != nil {
		return found, false
	}
	if subtle.ConstantTimeCompare(hash(given.Password, found.salt), found.hash) != 1 {
		return found, false
	}
	found.verified = remembered(given.Password)
	verified.Store(given.Username, found)
	return found, true
}

func auth(w http.ResponseWriter, r *http.Request) {
	var given credentials
	if json.NewDecoder(r.Body).Decode(&given) != nil {
		http.Error(w, `{"error":"invalid_request"}`, http.StatusBadRequest)
		return
	}
	found, ok := find(given)
	if !ok {
		http.Error(w, `{"error":"invalid_grant"}`, http.StatusUnauthorized)
		return
	}
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": "http://" + r.Host, "sub": given.Username, "iat": now.Unix(), "nbf": now.Unix(),
		"exp": now.Unix() + 3600, "jti": fmt.Sprintf("%x", remembered(now.String())[:16])})
	token.Header["kid"] = "1"
	signed, err := token.SignedString(key)
	address, _, _ := net.SplitHostPort(r.RemoteAddr)
	row := attempt{address, now.UTC().Format("2006-01-02 15:04:05.000"), found.id, found.hash,
		make(chan error, 1)}
	attempts <- row
	if err != nil || <-row.done != nil {
		http.Error(w, `{"error":"unavailable"}`, http.StatusServiceUnavailable)
		return
	}
	answer(w, http.StatusOK, map[string]any{"token": signed, "expires_in": 3600})
}

func keySet(w http.ResponseWriter, r *http.Request) {
	n := base64.RawURLEncoding.EncodeToString(key.N.Bytes())
	answer(w, http.StatusOK, map[string]any{"keys": []map[string]string{
		{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1", "n": n, "e": "AQAB"}}})
}

func answer(w http.ResponseWriter, status int, document any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(document)
}

// One commit for all attempts that wait; what came meanwhile waits for the next.
func write() {
	for first := range attempts {
		batch := []attempt{first}
		for more := true; more && len(batch) < 256; {
			select {
			case next := <-attempts:
				batch = append(batch, next)
			default:
				more = false
			}
		}
		err := commit(batch)
		for _, row := range batch {
			row.done <- err
		}
	}
}

func commit(batch []attempt) error {
	transaction, err := database.Begin()
	if err != nil {
		return err
	}
	defer transaction.Rollback()
	for _, row := range batch {
		var hash []byte // a password that was changed meanwhile is worth no token
		err = transaction.QueryRow("SELECT password_hash FROM users WHERE id = ?", row.user).Scan(&hash)
		if err == nil && !bytes.Equal(hash, row.hash) {
			err = fmt.Errorf("superseded")
		}
		if err == nil {
			_, err = transaction.Exec("INSERT INTO auth_logs (request_ip, request_timestamp, user_id) "+
				"VALUES (?, ?, ?)", row.address, row.time, row.user)
		}
		if err == nil {
			_, err = transaction.Exec("UPDATE users SET last_login = ? WHERE id = ?", row.time, row.user)
		}
		if err != nil {
			return err
		}
	}
	return transaction.Commit()
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	forget = len(os.Args) > 3
	must(rand.Read(secret))
	key = must(rsa.GenerateKey(rand.Reader, 2048))
	database = must(sql.Open("sqlite3", os.Args[2]+
		"?_journal_mode=WAL&_synchronous=FULL&_busy_timeout=5000&_txlock=immediate"))
	must(database.Exec(schema))
	go write()
	http.HandleFunc("/register", register)
	http.HandleFunc("/auth", auth)
	http.HandleFunc("/.well-known/jwks.json", keySet)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
