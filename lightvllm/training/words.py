# ruff: noqa: SIM905 - a pool of hundreds of words reads better as text than as a list
"""Word pools for the data generator: names of people and places, things a schema may talk about, and made-up words.

Made-up words matter most. A small model that only ever sees `customers` and `price` memorises them; one that also sees
`brolin` and `taskev` has to learn to copy a name from the schema, which is what an unseen database asks of it.
"""

import random

FIRST_NAMES = """Ada Alan Alice Amir Ana Anders Anna Astrid Aylin Ben Bianca Carl Carla Carlos Chen Clara Daniel Dara
David Diego Dina Elena Elif Emil Emma Erik Eva Farah Felix Fiona Finn George Grace Greta Hana Hans Hugo Ida Igor Ines
Ivan Jack Jamal Jana Joao John Jonas Julia Kai Karim Kate Kenji Laila Lars Laura Lena Leo Liam Lin Lucia Luis Maja
Marco Maria Mark Marta Max Maya Mia Milan Mina Nadia Nina Noah Nora Olga Oliver Omar Oscar Otto Pablo Paul Petra Priya
Rafael Rita Rosa Ruth Sam Sara Sofia Stefan Tara Theo Tom Uma Vera Victor Wei Yara Yuki Zara Zoe""".split()
LAST_NAMES = """Abbott Adams Ahmed Almeida Andersen Baker Banerjee Bauer Bell Berg Brown Carter Castro Chen Clark
Costa Cruz Dahl Davis Diaz Dubois Evans Fischer Flores Foster Garcia Gray Green Gupta Haas Hansen Harris Hill Hoffman
Ito Jansen Jones Kaya Keller Khan Kim King Klein Kovac Kumar Lang Larsen Lee Lopez Martin Mason Meyer Miller Mora
Moreau Morris Nagy Nguyen Novak Olsen Park Patel Perez Petrov Reyes Ricci Rivera Rossi Roy Russo Sato Schmidt Scott
Shah Silva Singh Smith Sokolov Stone Suzuki Tanaka Taylor Torres Turner Vargas Vega Walker Wang Weber White Wong Wood
Young""".split()
CITIES = """Amsterdam Athens Austin Bangkok Barcelona Berlin Bogota Boston Brussels Budapest Cairo Chicago Copenhagen
Dallas Delhi Denver Dublin Geneva Hamburg Hanoi Helsinki Istanbul Jakarta Kyoto Lagos Lima Lisbon London Lyon Madrid
Manila Melbourne Miami Milan Montreal Moscow Munich Nairobi Oslo Paris Porto Prague Quito Riga Rome Santiago Seattle
Seoul Singapore Sofia Stockholm Sydney Tallinn Tokyo Toronto Turin Vienna Vilnius Warsaw Zurich New_York San_Diego
Los_Angeles Cape_Town Hong_Kong Buenos_Aires Tel_Aviv""".replace("\n", " ").split()
COUNTRIES = """Argentina Australia Austria Belgium Brazil Canada Chile China Colombia Croatia Denmark Egypt Estonia
Finland France Germany Ghana Greece Hungary Iceland India Indonesia Ireland Israel Italy Japan Kenya Latvia Malaysia
Mexico Morocco Nepal Netherlands Nigeria Norway Peru Poland Portugal Romania Serbia Slovakia Spain Sweden Switzerland
Thailand Turkey Ukraine Uruguay Vietnam New_Zealand South_Korea South_Africa Costa_Rica""".split()
ADJECTIVES = """Amber Ancient Autumn Blue Bold Brave Bright Broken Calm Clear Clever Cold Copper Coral Crimson Crystal
Dark Deep Distant Double Early Eastern Electric Emerald Empty Endless Eternal Fallen Fast Final Fine First Frozen
Gentle Giant Golden Grand Great Green Grey Happy Hidden High Hollow Hot Humble Icy Iron Ivory Jade Kind Last Late
Light Little Lone Long Lost Lucky Marble Mighty Misty Modern Mystic Narrow New Noble Northern Old Open Orange Pale
Perfect Pink Plain Prime Proud Pure Purple Quick Quiet Rapid Rare Red Royal Rusty Sacred Scarlet Secret Sharp Silent
Silver Simple Slow Small Smart Smooth Snowy Solar Solid Southern Spare Stone Strong Sunny Super Sweet Swift Tall Tiny
True Turbo Upper Urban Velvet Violet Warm Western White Wild Winter Wise Wooden Yellow Young""".split()
THINGS = """Anchor Angel Arrow Beacon Bear Bell Bird Blade Bridge Brook Canyon Castle Cedar Circle Cloud Comet Compass
Crane Creek Crown Dawn Desert Diamond Dolphin Dragon Dream Eagle Echo Ember Engine Falcon Feather Field Fire Flame
Flower Forest Fountain Fox Garden Gate Glacier Grove Harbor Hawk Heart Hill Horizon Horse Island Ivy Jewel Journey Key
Kite Lake Lantern Leaf Lily Lion Lotus Maple Meadow Memory Mirror Moon Mountain Night Oak Oasis Ocean Orchard Owl
Palace Path Pearl Phoenix Pilot Pine Planet Portal Prairie Pulse Rain Raven Reef Ridge River Road Rocket Rose Sail Sea
Shadow Shield Shore Signal Sky Song Spark Spring Spirit Star Storm Stream Summit Sun Swan Temple Thunder Tiger Tower
Trail Tree Valley Voice Wave Whale Willow Wind Wing Wolf World""".split()
ORG_SUFFIXES = (
    "Labs Group Works Partners Systems Foods Media Studio Trading Motors Energy Bank Press Health Tech".split()
)

# Nouns that name tables of randomly composed schemas, in the singular.
TABLE_NOUNS = """account action activity actor address agency agent agreement album alert animal answer apartment
appointment area artist asset assignment athlete attachment auction award badge bag band batch battery beach bed
bicycle bill block boat bond bonus booking bottle box branch brand bridge broker budget bug builder building bundle
bus cabin cable cage calendar call camera camp campaign candidate car card cargo carrier case castle certificate chair
challenge channel chapter charge chef circuit claim class client clinic club coach code coin collection college
comment committee component computer container contract controller country coupon crate creature credit crop customer
cycle dealer debt defect delivery deposit desk detail device diagram dish document donation donor door draft drawing
driver drug editor election element elevator engine engineer entry episode error estate exam exhibit expense
experiment export factory family fan farm feature fee feed field file film filter firm fixture flag fleet floor flower
folder font food forecast form formula fountain frame friend fuel fund gallery gang garage garment gate gauge goal
good grade grant graph ground guard guest guide habitat harbor hall helmet hero hive hobby holder hole horse host
house icon idea image import incident index inspection inspector instance instructor insurer interview inventory
investor invitation island issue item jacket job journal journey judge kernel key kitchen label laboratory lake lamp
language laptop layer leader league lease lecture lender lesson letter level license line link list loan location lock
log lot machine mail manager map marker market mascot match material meal measurement medal medicine meeting mentor
menu message meter mine mineral mission model module monitor monument motor mountain museum network node note nurse
object observation offer office officer operator option orchard organ outlet owner package page painting panel part
party passenger patch patient payment performer permit phase phone photo phrase piece pilot pipeline pitch place plan
plant plate player plot podcast point policy pool port portfolio position post poster prescription printer prisoner
prize problem process producer product profile program project property proposal protocol provider province pump
puzzle quarter query quiz quota race radio railway rank reading receipt recipe record region reminder rental repair
report request reservation resident resource response restaurant result review reward rider ring risk river road robot
role room route rule sample satellite scan schedule school scientist score screen script season seat section sector
seller sensor series server service session shape sheet shelf shift ship shipment shop show signal site skill slide
slot snack soldier song source spare species speaker sponsor stadium staff stage stamp star station status step stock
stop storm story street student studio subject subscription supplier survey switch symbol symptom system table tag
talent tank target task tax teacher team template tenant terminal test text theater thread ticket tile title token
tool topic tour tower town toy track trade trail train transfer treatment tree trial tribe trip trophy truck tutor
unit update upgrade user vaccine valley value van variant vehicle vendor venue vessel video village vineyard visa
visit visitor volcano volunteer vote voucher wallet ward warehouse warranty watch wave weapon website wheel window
wine winner wire word worker workshop writer yard zone""".split()
ROLE_WORDS = """owner manager winner sender receiver parent origin destination author creator reviewer buyer home away
main backup leader host guest first second source target lead sponsor mentor""".split()
NOUN_ENDINGS = "er or ing ery ation ant person item list type ist ment man al".split()
NUMBER_HEADS = """price cost amount total score rating weight height length width depth size capacity quantity count
level rank age points duration distance speed volume area budget salary fee discount balance stock share score power
temperature pressure voltage range load value revenue profit income tax debt bonus limit rate ratio margin yield seats
floors pages rooms members votes views likes visits hours minutes days steps wins losses goals attempts units copies
population mileage strength density energy brightness frequency latency memory bandwidth elevation age""".split()
NUMBER_MODIFIERS = """total max min average net gross base unit daily weekly monthly annual yearly initial final
current last first overall estimated actual planned target spare hourly peak nominal minimum maximum usual credit
local public internal external raw standard extra shipping market list sale""".split()
CATEGORY_HEADS = """status type category kind color level group class mode priority state region material brand origin
season format style shape phase tier segment channel method source sector language gender department grade role topic
theme variety flavor condition currency unit zone side stage section platform quality rank species gear track""".split()
CATEGORY_VALUES = """active|inactive|pending open|closed|cancelled new|used|refurbished low|medium|high
small|medium|large red|green|blue|black|white gold|silver|bronze north|south|east|west draft|review|published
paid|unpaid|overdue standard|premium|basic online|store|phone morning|evening|night spring|summer|autumn|winter
internal|external wood|steel|plastic|glass junior|senior|lead public|private email|chat|phone daily|weekly|monthly
approved|rejected|waiting hot|cold|warm single|double|suite male|female cash|card|transfer planned|running|done
critical|major|minor import|export beginner|intermediate|advanced digital|paper cotton|silk|wool|linen A|B|C|D
Alpha|Beta|Gamma|Delta Gold|Silver|Bronze Low|Medium|High Active|Closed|Pending English|French|Spanish|German
Europe|Asia|Africa|America manual|automatic round|square|oval diesel|electric|hybrid|petrol first|second|third
sweet|sour|bitter|salty full|partial|none left|right|center urgent|normal|routine mobile|desktop|tablet
Sales|Finance|Legal|Research monday|tuesday|friday fresh|frozen|dried|canned matte|glossy ACTIVE|BLOCKED|EXPIRED
Shipped|Processing|Returned mint|good|fair|poor lab|field|remote
part_time|full_time|seasonal not_started|in_progress|done very_low|low|high north_east|south_west|center
first_class|second_class|economy pick_up|home_delivery|mail single_use|reusable dark_red|light_blue|deep_green
open_end|fixed_term|on_call on_hold|in_review|signed_off linux|windows|bsd jpg|png|gif""".split()
DATE_HEADS = """created started ended opened closed updated issued signed received delivered ordered shipped paid
published released joined hired registered checked due expires installed built founded inspected booked
returned posted bought applied sold sent repaired cleaned tested launched scheduled arrived measured approved visited
planted caught""".split()
DATE_NOUNS = "start end issue delivery order payment release birth hire due expiry purchase sale visit check".split()
FLAG_WORDS = """active verified approved available public paid archived urgent online visible certified insured
enabled locked premium featured refundable vegan portable waterproof fragile free open completed taxable
recurring""".split()
TEXT_HEADS = "code description comment address phone email note nickname serial label reference alias summary".split()
EXTRA_ADJECTIVES = [word.lower() for word in ADJECTIVES]

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z br bl cr dr fl fr gl gr kl kr pl pr sk sl sp st str tr th ch sh qu".split()
)
_VOWELS = "a e i o u a e i o u ai ea ou io y".split()
_CODAS = ["", "", "", "l", "m", "n", "r", "t", "k", "x", "nd", "rk", "st", "lt", "p", "v"]


def made_up_word(rng: random.Random) -> str:
    """A pronounceable word of two or three syllables that means nothing, such as `trovelk`."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 2, 3)))]
    return "".join(syllables) + rng.choice(_CODAS)


_IRREGULAR = {"person": "people", "child": "children", "man": "men", "woman": "women", "shelf": "shelves",
              "leaf": "leaves", "wolf": "wolves", "criterion": "criteria", "analysis": "analyses",
              "mouse": "mice", "hero": "heroes", "staff": "staff", "aircraft": "aircraft",
              "equipment": "equipment", "stock": "stock", "data": "data",
              "bus": "buses", "status": "statuses", "campus": "campuses", "bonus": "bonuses",
              "gas": "gases"}  # fmt: skip


def is_plural(phrase: str) -> bool:
    """Whether the phrase is a plural already, as `pages` and `copies sold` are."""
    noun = phrase.rpartition(" ")[2]
    return noun.endswith("s") and not noun.endswith("ss") and noun not in _IRREGULAR


def plural(phrase: str) -> str:
    """The English plural of a noun phrase; its noun changes: `stories`, `years of birth`."""
    for preposition in (" of ", " in ", " per ", " at "):
        if preposition in phrase:
            noun, _, rest = phrase.partition(preposition)
            return plural(noun) + preposition + rest
    head, _, noun = phrase.rpartition(" ")
    if noun in _IRREGULAR:
        word = _IRREGULAR[noun]
    elif is_plural(noun):
        word = noun
    elif noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        word = noun[:-1] + "ies"
    elif noun.endswith(("s", "x", "z", "ch", "sh")):
        word = noun + "es"
    else:
        word = noun + "s"
    return f"{head} {word}" if head else word


def article(phrase: str) -> str:
    """The phrase behind its indefinite article, which a plural has not."""
    if is_plural(phrase):
        return phrase
    return ("an " if phrase[:1].lower() in tuple("aeiou") else "a ") + phrase
