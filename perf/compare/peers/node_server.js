// Node: the `net` module with noDelay, and the replies of common.py.
// It uses socket events and no stream pipelines; when write() returns false, it waits for 'drain'.
'use strict'
const net = require('net')

const http = (body, close = '') =>
  Buffer.concat([
    Buffer.from(`HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n${close}Content-Length: ${body.length}\r\n\r\n`),
    Buffer.from(body),
  ])
const REPLY = http('a reply of one hundred bytes altog.')
const LAST_REPLY = http('the reply and the end of it', 'Connection: close\r\n')
const LATE_REPLY = Buffer.from(
  'HTTP/1.1 200 OK\r\nDate: Wed, 03 Oct 2012 23:43:10 GMT\r\nContent-Type: text/plain\r\n' +
    'Content-Length: 9\r\n\r\nomglolwtf')
const LARGE_REPLY = http(Buffer.alloc(1 << 20, 'x'))
const MESSAGE = Buffer.alloc(1024, 'm')
const CHUNK = Buffer.alloc(256 << 10, 'c')

const late = (delay) => (socket) => socket.on('data', () => setTimeout(() => socket.end(LATE_REPLY), delay))
const members = new Set()

const WORKLOADS = {
  keepalive: (socket) => socket.on('data', () => socket.write(REPLY)),
  churn: (socket) => socket.on('data', () => socket.end(LAST_REPLY)),
  large: (socket) => socket.on('data', () => socket.write(LARGE_REPLY)),
  pump(socket) {
    const pump = () => { while (socket.write(CHUNK)); }
    socket.on('data', pump).on('drain', pump)
  },
  seed: late(1000),
  pending: late(3600 * 1000),
  broadcast(socket) {
    members.add(socket)
    socket.on('close', () => members.delete(socket))
    socket.on('data', () => { for (const member of members) member.write(MESSAGE) })
  },
}

const [, , , port, , workload] = process.argv // --port PORT --workload NAME
const server = net.createServer({ noDelay: true }, (socket) => {
  socket.on('error', () => {}) // the client has disconnected
  WORKLOADS[workload](socket)
})
server.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 }, () =>
  console.log(`listening on 127.0.0.1:${server.address().port}`))
