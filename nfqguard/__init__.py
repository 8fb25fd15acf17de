"""nfqguard: an inline SMTP inspector on NFQUEUE.

Vocabulary, used in every file:

packet      an IP datagram; segment: its TCP part; flow: a connection; stream: one direction of a flow
originator  who sent the SYN, responder who answered it; at SMTP level client and server
session     what client and server say on one flow; transaction, command, reply, body as in RFC 5321
policy      what is allowed: a policy holds matches, a match holds an action
verdict     what becomes of a packet: accept, drop; an edited packet is accepted with other octets
exception   what cannot be judged ("cannot tell"); the policy has an answer for each
deployment  the steps in Netfilter that bring packets to us; never called rules here
"""

__version__ = "0.1.0"
