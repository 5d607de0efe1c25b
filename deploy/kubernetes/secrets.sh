#!/bin/sh
# Makes the files of the two secrets that the manifests need, in the folders web/ and scrape/ below the current one.
#
# web/ is the pod's: a certificate with its key, users with hashed passwords, and what curl needs to ask as one of them.
# scrape/ is Prometheus': the certificate as authority, and a name with its password. Each run makes new ones.
# Needs openssl, and as $PYTHON (python3 when unset) a Python that has bcrypt, as the one that has vbnet does.
set -eu
umask 077

python=${PYTHON:-python3}
mkdir -p web scrape

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 365 -subj /CN=vbnet \
    -addext subjectAltName=DNS:vbnet -keyout web/tls.key -out web/tls.crt 2>/dev/null
cp web/tls.crt scrape/ca.crt

password() { "$python" -c 'import secrets; print(secrets.token_urlsafe(24), end="")'; }
hashed() { "$python" -c 'import bcrypt, sys; print(bcrypt.hashpw(sys.stdin.buffer.read(), bcrypt.gensalt(10)).decode())'; }

printf prometheus >scrape/username
password >scrape/password
probe=$(password)

cat >web/web.yaml <<EOF
tls_server_config: {cert_file: tls.crt, key_file: tls.key}
basic_auth_users:
  prometheus: $(hashed <scrape/password)
  probe: $(printf %s "$probe" | hashed)
EOF

cat >web/probe.curl <<EOF
fail
silent
show-error
max-time = 4
cacert = "/etc/vbnet/web/tls.crt"
resolve = "vbnet:9617:127.0.0.1"
user = "probe:$probe"
EOF
