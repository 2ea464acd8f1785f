/*
 * A peer of js-libp2p, as a process that the tests talk to: `node peer.mjs '{"listen": ["/ip4/127.0.0.1/tcp/0"]}'`.
 *
 * Takes commands as lines of JSON, {"id": 1, "do": "ping", ...}, and answers each with {"id": 1, "result": ...} or
 * {"id": 1, "error": "TypeError: ..."}. Says {"peer_id": ..., "maddrs": [...]} when it is ready, and ends when its
 * standard input does. Options: `listen` (addresses; one that ends in /p2p-circuit reserves at that relay), `announce`
 * (addresses to tell others, since what nobody has confirmed it keeps to itself), `relay` (be one; true, or options of
 * its reservation store), `autonat` (ask whether others reach it, and dial back those who ask), `mdns` (find peers in
 * the same network, and be found).
 */
import { createHash, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { autoNATv2 } from '@libp2p/autonat-v2'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { dcutr } from '@libp2p/dcutr'
import { identify, identifyPush } from '@libp2p/identify'
import { mdns } from '@libp2p/mdns'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const ECHO = '/test/echo/1.0.0' // everything back as it comes
const SUM = '/test/sum/1.0.0' // what everything was, once it has ended: its SHA-256 in hex
const RESET = '/test/reset/1.0.0' // a reset for the first byte
const WAIT = '/test/wait/1.0.0' // a byte, and nothing more
const CHUNK = 2 ** 18
const ANY = { runOnLimitedConnection: true }

const { listen, announce, relay, autonat, mdns: local } = JSON.parse(process.argv[2])
const node = await createLibp2p({
  addresses: { listen, announce },
  transports: [tcp(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionManager: { inboundConnectionThreshold: 1000 },
  peerDiscovery: local ? [mdns({ interval: 1000 })] : [],
  services: {
    identify: identify(),
    identifyPush: identifyPush(),
    ping: ping(),
    dcutr: dcutr(),
    ...(autonat ? { autonat: autoNATv2() } : {}),
    ...(relay ? { relay: circuitRelayServer(relay === true ? {} : { reservations: relay }) } : {})
  }
})

async function send (stream, data) {
  if (!stream.send(data)) await stream.onDrain()
}

async function sendRandom (stream, size) {
  const hash = createHash('sha256')
  for (let left = size; left > 0; left -= CHUNK) {
    const data = randomBytes(Math.min(left, CHUNK))
    hash.update(data)
    await send(stream, data)
  }
  await stream.close() // our half of it
  return hash.digest('hex')
}

async function sumOf (stream) {
  const hash = createHash('sha256')
  for await (const data of stream) hash.update(data.subarray())
  return hash.digest('hex')
}

const found = [] // in the same network
node.addEventListener('peer:discovery', event => found.push(event.detail.id.toString()))

let waiting = Promise.withResolvers()
const handlers = {
  [ECHO]: async stream => {
    for await (const data of stream) await send(stream, data)
    await stream.close()
  },
  [SUM]: async stream => {
    await send(stream, new TextEncoder().encode(await sumOf(stream)))
    await stream.close()
  },
  [RESET]: async stream => {
    for await (const _ of stream) return stream.abort(new Error('on purpose'))
  },
  [WAIT]: async stream => {
    stream.addEventListener('close', event => waiting.resolve(event.error?.name ?? 'closed'))
    await send(stream, new Uint8Array(1))
  }
}
for (const [protocol, handler] of Object.entries(handlers)) {
  await node.handle(protocol, handler, { maxInboundStreams: 1000, maxOutboundStreams: 1000, ...ANY })
}

function connection (peer) {
  const open = node.getConnections().filter(each => each.remotePeer.toString() === peer && each.status === 'open')
  open.sort((one, other) => isRelayed(one) - isRelayed(other))
  if (open.length === 0) throw new Error(`not connected to ${peer}`)
  return open[0]
}

const verified = () => node.components.addressManager.getAddressesWithMetadata()
  .filter(each => each.verified).map(each => each.multiaddr.toString())
const isRelayed = connection => connection.remoteAddr.toString().includes('/p2p-circuit')
const openStream = (peer, protocol) => connection(peer).newStream(protocol, ANY)

const commands = {
  connect: async ({ maddr }) => isRelayed(await node.dial(multiaddr(maddr))) ? 'relayed' : 'direct',

  path: async ({ peer }) => isRelayed(connection(peer)) ? 'relayed' : 'direct',

  identify: async ({ peer }) => {
    const said = await node.services.identify.identify(connection(peer))
    return {
      agent: said.agentVersion,
      protocols: said.protocols,
      maddrs: said.listenAddrs.map(String),
      observed: String(said.observedAddr)
    }
  },

  // milliseconds
  ping: async ({ peer }) => await node.services.ping.ping(multiaddr(`/p2p/${peer}`)),

  // whether so many random bytes came back as they were
  echo: async ({ peer, size }) => {
    const stream = await openStream(peer, ECHO)
    const received = sumOf(stream)
    return await sendRandom(stream, size) === await received
  },

  echoMany: async ({ peer, streams, size }) => {
    const each = await Promise.all(Array.from({ length: streams }, async () => await commands.echo({ peer, size })))
    return each.filter(Boolean).length
  },

  // whether the peer, once we had ended our half, said what we had sent
  sum: async ({ peer, size }) => {
    const stream = await openStream(peer, SUM)
    const sum = await sendRandom(stream, size)
    let said = ''
    for await (const data of stream) said += new TextDecoder().decode(data.subarray())
    return said === sum
  },

  // how a stream that the peer resets ends
  reset: async ({ peer }) => {
    const stream = await openStream(peer, RESET)
    const ended = sumOf(stream)
    await send(stream, new Uint8Array(1))
    return await ended.then(() => 'closed', error => error.name)
  },

  // how the stream that the peer left waiting ended
  waitUntilEnded: async () => {
    const how = await waiting.promise
    waiting = Promise.withResolvers()
    return how
  },

  untilFound: async ({ peer }) => {
    while (!found.includes(peer)) await setTimeout(20)
  },

  // those of its addresses that it knows others to reach
  verified: async () => verified(),

  untilVerified: async ({ maddr }) => {
    while (!verified().includes(maddr)) await setTimeout(20)
  },

  open: async ({ peer, protocol }) => (await openStream(peer, protocol)).protocol,

  connections: async () => node.getConnections().length,

  hangUp: async ({ peer }) => await connection(peer).close()
}

function say (line) {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}

say({ peer_id: node.peerId.toString(), maddrs: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: command, ...options } = JSON.parse(line)
  commands[command](options).then(
    result => say({ id, result: result ?? null }),
    error => say({ id, error: `${error.name}: ${error.message}` })
  )
}
process.exit()
